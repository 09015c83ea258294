"""Helpers below everything else; nothing here knows a method."""
