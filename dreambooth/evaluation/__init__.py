"""What finished runs are worth: measured, compared in studies, and reported."""
