"""Reports of compressed models: a page, charts, and tables of results."""

from lpjax.report.page import PAGE as PAGE
from lpjax.report.page import PAGE_KIND as PAGE_KIND
from lpjax.report.page import Baseline as Baseline
from lpjax.report.page import Missing as Missing
from lpjax.report.page import check_runs as check_runs
from lpjax.report.page import write_own_page as write_own_page
from lpjax.report.page import write_report as write_report
from lpjax.report.plots import plot_inspection as plot_inspection
from lpjax.report.plots import plot_matrix as plot_matrix
from lpjax.report.plots import plot_results as plot_results
from lpjax.report.plots import plot_sizes as plot_sizes
from lpjax.report.results import Results as Results
from lpjax.report.results import read_results as read_results
from lpjax.report.text import results_table as results_table
