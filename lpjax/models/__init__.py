"""Nets: BERT, DistilBERT, RoBERTa, XLNet and what is one of these by another name."""

from lpjax.models.bert import BertConfig as BertConfig
from lpjax.models.config import ModelConfig as ModelConfig
from lpjax.models.distilbert import DistilBertConfig as DistilBertConfig
from lpjax.models.encoder import ARCHITECTURES as ARCHITECTURES
from lpjax.models.encoder import CLASS_NAMES as CLASS_NAMES
from lpjax.models.encoder import Architecture as Architecture
from lpjax.models.encoder import architecture as architecture
from lpjax.models.encoder import classify as classify
from lpjax.models.encoder import config_from_json as config_from_json
from lpjax.models.encoder import device_params as device_params
from lpjax.models.encoder import encode as encode
from lpjax.models.encoder import fill_mask as fill_mask
from lpjax.models.encoder import hidden_states as hidden_states
from lpjax.models.encoder import logits_of as logits_of
from lpjax.models.encoder import tokens_of as tokens_of
from lpjax.models.roberta import CamembertConfig as CamembertConfig
from lpjax.models.roberta import RobertaConfig as RobertaConfig
from lpjax.models.roberta import XLMRobertaConfig as XLMRobertaConfig
from lpjax.models.xlnet import XLNetConfig as XLNetConfig
