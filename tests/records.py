"""Every class of record that is stored, found in the modules that define them."""

from __future__ import annotations

import inspect

from secretsvc.core import access, model, rules

STORED = sorted(
    {
        found
        for module in (access, model, rules)
        for _, found in inspect.getmembers(module, inspect.isclass)
        if hasattr(found, "KIND")
    },
    key=lambda found: found.__name__,
)
