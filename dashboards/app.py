"""What Streamlit runs, each time that somebody looks or chooses."""

from dashboards.page import main

main()
