"""Ways out: a path of a base or a routed checkpoint as something that every serving stack loads."""
