import os

# Large tensors on the CPU come and go with every update. Without huge pages (Linux), a third of the time goes into
# mapping their memory anew. PyTorch reads this once, before its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
