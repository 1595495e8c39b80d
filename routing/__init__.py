"""The library behind the three commands: tasks, scoring, search, labels, features, objectives, reports."""
