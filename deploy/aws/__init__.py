"""Amazon Web Services: functions for Lambda and their package, Terraform, the table's layout."""
