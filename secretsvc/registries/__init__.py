"""Asking registries about logins."""
