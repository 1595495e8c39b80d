"""What each path of a menu is worth for a question: dense tables, headroom, guarantees."""
