"""Pure rules and nouns: no I/O, no clock, no third-party library."""
