"""The desk in the browser: Streamlit pages over the case store."""
