"""Models: BERT, DistilBERT, RoBERTa, XLNet, ModernBERT, ALBERT, MPNet, ELECTRA, and models of other names that have one
of these architectures."""

from lpjax.models.albert import AlbertConfig as AlbertConfig
from lpjax.models.architecture import ARCHITECTURES as ARCHITECTURES
from lpjax.models.architecture import UnknownModel as UnknownModel
from lpjax.models.architecture import architecture_of as architecture_of
from lpjax.models.architecture import config_from_json as config_from_json
from lpjax.models.architecture import name_table as name_table
from lpjax.models.bert import BertConfig as BertConfig
from lpjax.models.config import Architecture as Architecture
from lpjax.models.config import ModelConfig as ModelConfig
from lpjax.models.distilbert import DistilBertConfig as DistilBertConfig
from lpjax.models.electra import ElectraConfig as ElectraConfig
from lpjax.models.encoder import check_span_outputs as check_span_outputs
from lpjax.models.encoder import classify as classify
from lpjax.models.encoder import device_params as device_params
from lpjax.models.encoder import encode as encode
from lpjax.models.encoder import fill_mask as fill_mask
from lpjax.models.encoder import hidden_states as hidden_states
from lpjax.models.encoder import logits_of as logits_of
from lpjax.models.encoder import tokens_of as tokens_of
from lpjax.models.modernbert import ModernBertConfig as ModernBertConfig
from lpjax.models.mpnet import MPNetConfig as MPNetConfig
from lpjax.models.roberta import CamembertConfig as CamembertConfig
from lpjax.models.roberta import RobertaConfig as RobertaConfig
from lpjax.models.roberta import XLMRobertaConfig as XLMRobertaConfig
from lpjax.models.xlnet import XLNetConfig as XLNetConfig
