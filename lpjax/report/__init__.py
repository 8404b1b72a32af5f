"""What a run leaves behind: a record with its circumstances, a table, a plot, and a page that shows all of it."""

from lpjax._json import RecordError as RecordError
from lpjax.report._break_even import break_even_document as break_even_document
from lpjax.report._break_even import read_break_even as read_break_even
from lpjax.report._calibration import load_calibration as load_calibration
from lpjax.report._calibration import save_calibration as save_calibration
from lpjax.report._cells import Results as Results
from lpjax.report._cells import read_results as read_results
from lpjax.report._circumstances import method_label as method_label
from lpjax.report._circumstances import run_record as run_record
from lpjax.report._inspection import plot_inspection as plot_inspection
from lpjax.report._page import PAGE as PAGE
from lpjax.report._page import Baseline as Baseline
from lpjax.report._page import Missing as Missing
from lpjax.report._page import check_page as check_page
from lpjax.report._page import write_report as write_report
from lpjax.report._plan import load_plan as load_plan
from lpjax.report._plan import save_plan as save_plan
from lpjax.report._plots import plot_results as plot_results
from lpjax.report._record import RECORD as RECORD
from lpjax.report._record import Record as Record
from lpjax.report._record import Step as Step
from lpjax.report._record import read_record as read_record
from lpjax.report._record import record_of as record_of
from lpjax.report._record import record_text as record_text
from lpjax.report._table import results_table as results_table
from lpjax.report._write import write_json as write_json
