"""What a run leaves behind: a record with its circumstances, a table, a plot, and a page that shows all of it."""

from lpjax.report._cells import Results as Results
from lpjax.report._cells import read_results as read_results
from lpjax.report._inspection import plot_inspection as plot_inspection
from lpjax.report._page import PAGE as PAGE
from lpjax.report._page import Baseline as Baseline
from lpjax.report._page import Missing as Missing
from lpjax.report._page import check_page as check_page
from lpjax.report._page import write_report as write_report
from lpjax.report._plots import plot_results as plot_results
from lpjax.report._run import check_dense as check_dense
from lpjax.report._table import results_table as results_table
