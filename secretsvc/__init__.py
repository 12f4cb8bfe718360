"""Registers, proves, delivers and rotates container registry credentials."""
