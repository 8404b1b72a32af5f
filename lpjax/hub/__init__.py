"""The Hugging Face Hub: model cards, and uploading."""

from lpjax.hub._upload import Sent as Sent
from lpjax.hub._upload import Upload as Upload
from lpjax.hub._upload import check_repo as check_repo
from lpjax.hub._upload import upload_of as upload_of
from lpjax.hub.card import card_text as card_text
from lpjax.hub.card import weights_card as weights_card
