"""The command line. A command is a public module here, with a function of the module's name and an `EXAMPLE`."""

from lpjax.cli._app import main as main
from lpjax.cli._app import make_app as make_app
from lpjax.cli._errors import INTERNAL as INTERNAL
