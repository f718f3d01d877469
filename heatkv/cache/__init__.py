"""Keys and values under a budget: the seam that models attend through, its memory, and attention over what is left.

``seam``       `KVCache.attend`, and the cache that executes a schedule
``by_scale``   how scales are cached: handed over whole, in one ring of memory for all layers
``by_line``    how lines are cached: token by token, in place
``packed_lines``  the same in fewer bits
``layout``     which entries of memory each head reads and keeps
``arena``      the one block of memory, and how an entry of it is stored
``attention``  attention of heads that read different entries
``probe``      a full cache that notes what chosen heads read
"""

from heatkv.cache.seam import Attend, KVCache, ScheduleCache, full_cache

__all__ = ["Attend", "KVCache", "ScheduleCache", "full_cache"]
