"""Modules of the project itself."""
