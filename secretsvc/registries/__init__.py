"""Asking registries about logins: the outbound side of proving, and nothing else.

`transport` moves bytes under limits, `addresses` and `realm` say where a login may go, `hostfacts` remembers
what belongs to a host, and `generic` puts the questions in order. What answers mean is `core.verdict`'s.
"""
