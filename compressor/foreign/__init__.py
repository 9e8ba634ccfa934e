"""Networks that come as files of other formats, read into torch modules without running code."""
