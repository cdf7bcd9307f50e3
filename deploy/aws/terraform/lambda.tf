# MSK -> store_decisions -> DynamoDB -> its stream -> announce_flags -> SNS.

resource "aws_sns_topic" "flags" {
  name              = "${var.name}-flags"
  kms_master_key_id = var.kms_key_arn
}

# What a function gave up on, as references to the records, for a person to look at.
resource "aws_sqs_queue" "failed" {
  for_each                  = toset(["store-decisions", "announce-flags"])
  name                      = "${var.name}-${each.key}-failed"
  message_retention_seconds = 1209600
  kms_master_key_id         = var.kms_key_arn
  sqs_managed_sse_enabled   = var.kms_key_arn == null ? true : null
}

resource "aws_cloudwatch_log_group" "functions" {
  for_each          = toset(["store-decisions", "announce-flags"])
  name              = "/aws/lambda/${var.name}-${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

resource "aws_lambda_function" "store_decisions" {
  function_name    = "${var.name}-store-decisions"
  role             = aws_iam_role.store_decisions.arn
  filename         = var.functions_package
  source_code_hash = filebase64sha256(var.functions_package)
  handler          = "deploy.aws.lambdas.store_decisions"
  runtime          = "python3.12"
  architectures    = ["arm64"]
  memory_size      = 512
  timeout          = 60

  environment {
    variables = {
      DECISION_TABLE = aws_dynamodb_table.decisions.name
      RETENTION_DAYS = tostring(var.retention_days)
    }
  }

  depends_on = [aws_cloudwatch_log_group.functions, aws_iam_role_policy.store_decisions]
}

resource "aws_lambda_function" "announce_flags" {
  function_name    = "${var.name}-announce-flags"
  role             = aws_iam_role.announce_flags.arn
  filename         = var.functions_package
  source_code_hash = filebase64sha256(var.functions_package)
  handler          = "deploy.aws.lambdas.announce_flags"
  runtime          = "python3.12"
  architectures    = ["arm64"]
  memory_size      = 256
  timeout          = 60

  environment {
    variables = {
      FLAGS_TOPIC_ARN = aws_sns_topic.flags.arn
    }
  }

  depends_on = [aws_cloudwatch_log_group.functions, aws_iam_role_policy.announce_flags]
}

# The topic must exist: start a streamer once, or make it yourself.
resource "aws_lambda_event_source_mapping" "decisions" {
  event_source_arn  = local.kafka_arn
  function_name     = aws_lambda_function.store_decisions.arn
  topics            = [var.stored_topic]
  starting_position = "TRIM_HORIZON"
  batch_size        = 500
  # Gathering for longer makes fewer calls and later answers.
  maximum_batching_window_in_seconds = 1
  # Partial answers, retries and bisection of Kafka batches need pollers of our own.
  function_response_types        = ["ReportBatchItemFailures"]
  maximum_retry_attempts         = 20
  bisect_batch_on_function_error = true

  provisioned_poller_config {
    minimum_pollers = 1
    maximum_pollers = 4
  }

  amazon_managed_kafka_event_source_config {
    consumer_group_id = "${var.consumer_group}-store-decisions"
  }

  destination_config {
    on_failure {
      destination_arn = aws_sqs_queue.failed["store-decisions"].arn
    }
  }
}

resource "aws_lambda_event_source_mapping" "flags" {
  event_source_arn                   = aws_dynamodb_table.decisions.stream_arn
  function_name                      = aws_lambda_function.announce_flags.arn
  starting_position                  = "TRIM_HORIZON"
  batch_size                         = 100
  maximum_batching_window_in_seconds = 1
  function_response_types            = ["ReportBatchItemFailures"]
  maximum_retry_attempts             = 20
  bisect_batch_on_function_error     = true

  # What expires is no news, nor is an approval: the function is not even called for them.
  filter_criteria {
    filter {
      pattern = jsonencode({
        eventName = ["INSERT"]
        dynamodb  = { NewImage = { decision = { S = ["review", "decline"] } } }
      })
    }
  }

  destination_config {
    on_failure {
      destination_arn = aws_sqs_queue.failed["announce-flags"].arn
    }
  }
}

# Somebody must hear of what was given up.
resource "aws_cloudwatch_metric_alarm" "failed" {
  for_each            = aws_sqs_queue.failed
  alarm_name          = "${each.value.name}-not-empty"
  alarm_description   = "A function gave records up: see its log, correct the cause, then send them again."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = each.value.name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 1
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.flags.arn]
}
