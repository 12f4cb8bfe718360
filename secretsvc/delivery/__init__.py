"""Bringing credentials to their targets: namespaces and auth files."""
