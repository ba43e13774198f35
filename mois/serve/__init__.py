"""Servers for viewers: thin layers over `InteractiveSession`. Nothing of the method is here."""
