"""The first tab: photos, and the words for the subject."""
