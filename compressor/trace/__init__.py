"""What a search did, recorded while it runs or made again from its journal."""
