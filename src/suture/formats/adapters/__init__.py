"""Adapter formats, one file each: a folder → Adapter."""
