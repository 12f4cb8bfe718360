"""Verbs: what serve and work do, told through the Protocols of `core.ports`."""
