"""Where documents live: Vault or OpenBao, or one SQLite file."""
