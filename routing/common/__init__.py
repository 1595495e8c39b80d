"""What every room needs: errors, files, locks, arguments, statistics, facts about a run."""
