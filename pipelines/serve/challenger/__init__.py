"""The challenger: a second model that answers the same requests, to be compared with the champion."""
