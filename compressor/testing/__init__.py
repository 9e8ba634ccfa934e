"""Checks that an adapter's author runs against their own networks.

```python
class TestMyAdapter(AdapterContract):
    def adapter(self): return MyAdapter()
    def model(self): return my_network()
    def example(self): return (torch.randn(1, 3, 32, 32),)
```
"""

from compressor.testing.contract import AdapterContract

__all__ = ["AdapterContract"]
