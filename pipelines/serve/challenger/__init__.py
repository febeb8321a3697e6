"""The challenger: a second model that gets a share of the requests, to be compared with the champion."""
