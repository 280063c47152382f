import os

# Every update allocates and frees large tensors on the CPU. Without huge pages (Linux), mapping their memory takes a
# third of the time. PyTorch reads this variable once, before its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
