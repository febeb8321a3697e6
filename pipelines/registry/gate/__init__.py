"""The gate decides whether a candidate replaces the champion; a file for each kind of check."""
