# Decisions by transaction and by customer. The same layout in Python: deploy/aws/table.py.

resource "aws_dynamodb_table" "decisions" {
  name                        = "${var.name}-decisions"
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "transaction_id"
  stream_enabled              = true
  stream_view_type            = "NEW_IMAGE"
  deletion_protection_enabled = true

  attribute {
    name = "transaction_id"
    type = "S"
  }

  attribute {
    name = "customer_id"
    type = "S"
  }

  attribute {
    name = "event_time_ms"
    type = "N"
  }

  global_secondary_index {
    name            = "by_customer"
    hash_key        = "customer_id"
    range_key       = "event_time_ms"
    projection_type = "ALL"
  }

  ttl {
    attribute_name = "expires_at"
    enabled        = true
  }

  point_in_time_recovery {
    enabled = true
  }

  server_side_encryption {
    enabled     = var.kms_key_arn != null
    kms_key_arn = var.kms_key_arn
  }
}
