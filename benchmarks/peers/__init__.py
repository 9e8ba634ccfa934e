"""Ours beside other tools, on one network with the same images and the same MAdds.

python -m benchmarks.peers --budget madds=50% --seeds 0 --json peers.json

The way of the data: `__main__` asks `environment` for a Python that has the peers, and `rows` for
one row after another. A row is two children of that Python: `child make` compresses with one
method, `child judge` judges what came out, the same for every method. They read `request.json` and
write JSON (`protocol`); the module goes from one to the other through `torch.save`. `table` turns
rows into Markdown. A method is one function from `Task` and `Request` to `Product` (`task`).
"""
