"""What several of the questions have in common."""
