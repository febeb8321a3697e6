"""The gate decides whether a candidate replaces the champion; it has one file for each kind of check."""
