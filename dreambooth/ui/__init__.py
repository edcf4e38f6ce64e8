"""The studio's page: a folder for each tab, what they share beside them, and the doors in front."""
