"""Checkpoints on disk <-> parameter trees in memory."""

from lpjax.checkpoint._dense import Deferred as Deferred
from lpjax.checkpoint._dense import densified as densified
from lpjax.checkpoint._load import Checkpoint as Checkpoint
from lpjax.checkpoint._load import from_tree as from_tree
from lpjax.checkpoint._load import load_checkpoint as load_checkpoint
from lpjax.checkpoint._load import lowrank_ranks as lowrank_ranks
from lpjax.checkpoint._save import check_target as check_target
from lpjax.checkpoint._save import copy_side_files as copy_side_files
from lpjax.checkpoint._save import export_checkpoint as export_checkpoint
from lpjax.checkpoint._save import export_folder as export_folder
from lpjax.checkpoint._save import holds_weights as holds_weights
from lpjax.checkpoint._save import save_checkpoint as save_checkpoint
from lpjax.checkpoint._save import write_card as write_card
from lpjax.checkpoint._shards import Shards as Shards
from lpjax.checkpoint._shards import read_shards as read_shards
from lpjax.checkpoint.error import CheckpointError as CheckpointError
