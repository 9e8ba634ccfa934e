"""LayerNAS and the searches it is compared with: which architecture, under which limits."""
