"""Reports: evaluations and training runs as tables, pictures and self-contained pages."""
