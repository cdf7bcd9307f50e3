# Who may do what: each role has the actions that its code calls, on the resources that it names.

data "aws_iam_policy_document" "pods_assume" {
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]
    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "lambda_assume" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }
  }
}

# All our pods: what docs/kafka-security.md lists for each program, together.
data "aws_iam_policy_document" "pods" {
  statement {
    sid = "Connect"
    # WriteDataIdempotently: producers are idempotent; the action's resource is the cluster.
    actions   = ["kafka-cluster:Connect", "kafka-cluster:DescribeCluster", "kafka-cluster:WriteDataIdempotently"]
    resources = [local.kafka_arn]
  }

  statement {
    sid = "Topics"
    # CreateTopic: the streamer makes what is missing. Take it away where you make topics yourself.
    actions = [
      "kafka-cluster:CreateTopic",
      "kafka-cluster:DescribeTopic",
      "kafka-cluster:ReadData",
      "kafka-cluster:WriteData",
    ]
    resources = [for topic in local.topics : "${local.kafka_topic_arn_prefix}${topic}"]
  }

  statement {
    sid     = "Groups"
    actions = ["kafka-cluster:AlterGroup", "kafka-cluster:DescribeGroup"]
    # The group itself, its side logs, and what only asks (flagger-log-ends, flagger-smoke, ...).
    resources = [
      "${local.kafka_group_arn_prefix}${var.consumer_group}*",
      "${local.kafka_group_arn_prefix}flagger-*",
    ]
  }

  statement {
    sid       = "Transactions"
    actions   = ["kafka-cluster:AlterTransactionalId", "kafka-cluster:DescribeTransactionalId"]
    resources = ["${local.kafka_transaction_arn_prefix}${var.consumer_group}-*"]
  }

  statement {
    sid     = "LookUpDecisions"
    actions = ["dynamodb:GetItem", "dynamodb:Query"]
    resources = [
      aws_dynamodb_table.decisions.arn,
      "${aws_dynamodb_table.decisions.arn}/index/by_customer",
    ]
  }
}

locals {
  topics = [
    "transactions",
    "decisions",
    "alerts",
    "labels",
    "terminal-activity",
    "transactions.dead-letter",
  ]
}

resource "aws_iam_role" "pods" {
  name               = "${var.name}-pods"
  assume_role_policy = data.aws_iam_policy_document.pods_assume.json
}

resource "aws_iam_role_policy" "pods" {
  name   = "kafka-and-decisions"
  role   = aws_iam_role.pods.id
  policy = data.aws_iam_policy_document.pods.json
}

# The poller reads Kafka with the function's role.
data "aws_iam_policy_document" "store_decisions" {
  statement {
    sid       = "ReadKafka"
    actions   = ["kafka-cluster:Connect", "kafka-cluster:DescribeClusterDynamicConfiguration"]
    resources = [local.kafka_arn]
  }

  statement {
    sid       = "ReadTopic"
    actions   = ["kafka-cluster:DescribeTopic", "kafka-cluster:DescribeTopicDynamicConfiguration", "kafka-cluster:ReadData"]
    resources = ["${local.kafka_topic_arn_prefix}${var.stored_topic}"]
  }

  statement {
    sid       = "ReadAsGroup"
    actions   = ["kafka-cluster:AlterGroup", "kafka-cluster:DescribeGroup"]
    resources = ["${local.kafka_group_arn_prefix}${var.consumer_group}-store-decisions"]
  }

  statement {
    sid       = "FindBrokers"
    actions   = ["kafka:DescribeCluster", "kafka:DescribeClusterV2", "kafka:GetBootstrapBrokers"]
    resources = [local.kafka_arn]
  }

  # These actions know no resources; the poller puts network interfaces into the VPC.
  statement {
    sid = "Network"
    actions = [
      "ec2:CreateNetworkInterface",
      "ec2:DeleteNetworkInterface",
      "ec2:DescribeNetworkInterfaces",
      "ec2:DescribeSecurityGroups",
      "ec2:DescribeSubnets",
      "ec2:DescribeVpcs",
    ]
    resources = ["*"]
  }

  statement {
    sid       = "Store"
    actions   = ["dynamodb:PutItem"]
    resources = [aws_dynamodb_table.decisions.arn]
  }

  statement {
    sid       = "GiveUp"
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.failed["store-decisions"].arn]
  }

  statement {
    sid       = "Log"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.functions["store-decisions"].arn}:*"]
  }
}

resource "aws_iam_role" "store_decisions" {
  name               = "${var.name}-store-decisions"
  assume_role_policy = data.aws_iam_policy_document.lambda_assume.json
}

resource "aws_iam_role_policy" "store_decisions" {
  name   = "store-decisions"
  role   = aws_iam_role.store_decisions.id
  policy = data.aws_iam_policy_document.store_decisions.json
}

data "aws_iam_policy_document" "announce_flags" {
  statement {
    sid = "ReadStream"
    actions = [
      "dynamodb:DescribeStream",
      "dynamodb:GetRecords",
      "dynamodb:GetShardIterator",
    ]
    resources = [aws_dynamodb_table.decisions.stream_arn]
  }

  # ListStreams knows no resources.
  statement {
    sid       = "FindStream"
    actions   = ["dynamodb:ListStreams"]
    resources = ["*"]
  }

  statement {
    sid       = "Tell"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.flags.arn]
  }

  statement {
    sid       = "GiveUp"
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.failed["announce-flags"].arn]
  }

  statement {
    sid       = "Log"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.functions["announce-flags"].arn}:*"]
  }
}

resource "aws_iam_role" "announce_flags" {
  name               = "${var.name}-announce-flags"
  assume_role_policy = data.aws_iam_policy_document.lambda_assume.json
}

resource "aws_iam_role_policy" "announce_flags" {
  name   = "announce-flags"
  role   = aws_iam_role.announce_flags.id
  policy = data.aws_iam_policy_document.announce_flags.json
}

# With a key of your own, each role may use it through the service that encrypts.
data "aws_iam_policy_document" "kms" {
  count = var.kms_key_arn == null ? 0 : 1
  statement {
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.kms_key_arn]
  }
}

resource "aws_iam_role_policy" "kms" {
  for_each = var.kms_key_arn == null ? {} : {
    pods            = aws_iam_role.pods.id
    store_decisions = aws_iam_role.store_decisions.id
    announce_flags  = aws_iam_role.announce_flags.id
  }
  name   = "kms"
  role   = each.value
  policy = data.aws_iam_policy_document.kms[0].json
}
