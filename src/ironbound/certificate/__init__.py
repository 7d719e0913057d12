"""Certificates that others can check: a network as a plain file, claims about it, and a checker that trusts nobody."""
