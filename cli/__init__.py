"""The command `compressor`: parse and print only."""
