"""Commands and reports that every domain shares."""
