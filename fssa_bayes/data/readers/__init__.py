"""Readers: what becomes of the tables that people have.

Each reader returns the arguments of `Preferences`. The class methods of `Preferences` tell what a
reader takes.
"""
