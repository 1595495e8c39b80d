"""Routers that learn what each path is worth: of a menu, and of layers."""
