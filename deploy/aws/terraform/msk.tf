# Kafka with IAM authentication only, reachable from the cluster's pods and from Lambda's pollers.

locals {
  kafka_arn = var.kafka == "serverless" ? aws_msk_serverless_cluster.this[0].arn : aws_msk_cluster.this[0].arn
  # Resources of kafka-cluster:* actions are named after the cluster's ARN.
  kafka_topic_arn_prefix       = "${replace(local.kafka_arn, ":cluster/", ":topic/")}/"
  kafka_group_arn_prefix       = "${replace(local.kafka_arn, ":cluster/", ":group/")}/"
  kafka_transaction_arn_prefix = "${replace(local.kafka_arn, ":cluster/", ":transactional-id/")}/"
}

resource "aws_security_group" "kafka" {
  name        = "${var.name}-kafka"
  description = "Kafka brokers of ${var.name}"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "kafka_from_pods" {
  security_group_id            = aws_security_group.kafka.id
  description                  = "IAM listener, from the EKS nodes"
  referenced_security_group_id = var.eks_node_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 9098
  to_port                      = 9098
}

resource "aws_vpc_security_group_ingress_rule" "kafka_from_pollers" {
  security_group_id            = aws_security_group.kafka.id
  description                  = "Lambda's pollers have the brokers' own security group"
  referenced_security_group_id = aws_security_group.kafka.id
  ip_protocol                  = "tcp"
  from_port                    = 9098
  to_port                      = 9098
}

resource "aws_vpc_security_group_egress_rule" "kafka" {
  security_group_id            = aws_security_group.kafka.id
  description                  = "Between brokers and pollers"
  referenced_security_group_id = aws_security_group.kafka.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "pollers_to_aws" {
  security_group_id = aws_security_group.kafka.id
  description       = "Pollers call Lambda, STS and SQS: by VPC endpoints or NAT"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_msk_serverless_cluster" "this" {
  count        = var.kafka == "serverless" ? 1 : 0
  cluster_name = var.name

  vpc_config {
    subnet_ids         = var.subnet_ids
    security_group_ids = [aws_security_group.kafka.id]
  }

  client_authentication {
    sasl {
      iam {
        enabled = true
      }
    }
  }
}

resource "aws_cloudwatch_log_group" "kafka" {
  count             = var.kafka == "provisioned" ? 1 : 0
  name              = "/${var.name}/kafka"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

resource "aws_msk_configuration" "this" {
  count          = var.kafka == "provisioned" ? 1 : 0
  name           = var.name
  kafka_versions = [var.kafka_version]

  # Two of three copies acknowledge a write; topics are made by `flagger stream` or by you, never by
  # a misspelt name. The log is kept: state is rebuilt from it.
  server_properties = <<-PROPERTIES
    auto.create.topics.enable=false
    default.replication.factor=${length(var.subnet_ids) > 2 ? 3 : 2}
    min.insync.replicas=${length(var.subnet_ids) > 2 ? 2 : 1}
    unclean.leader.election.enable=false
    message.max.bytes=8388608
    log.retention.ms=-1
    transaction.max.timeout.ms=900000
  PROPERTIES
}

resource "aws_msk_cluster" "this" {
  count                  = var.kafka == "provisioned" ? 1 : 0
  cluster_name           = var.name
  kafka_version          = var.kafka_version
  number_of_broker_nodes = length(var.subnet_ids)

  broker_node_group_info {
    instance_type   = var.broker_instance_type
    client_subnets  = var.subnet_ids
    security_groups = [aws_security_group.kafka.id]

    storage_info {
      ebs_storage_info {
        volume_size = var.broker_volume_gib
      }
    }
  }

  client_authentication {
    unauthenticated = false
    sasl {
      iam   = true
      scram = false
    }
  }

  encryption_info {
    encryption_at_rest_kms_key_arn = var.kms_key_arn
    encryption_in_transit {
      client_broker = "TLS"
      in_cluster    = true
    }
  }

  configuration_info {
    arn      = aws_msk_configuration.this[0].arn
    revision = aws_msk_configuration.this[0].latest_revision
  }

  open_monitoring {
    prometheus {
      jmx_exporter {
        enabled_in_broker = true
      }
      node_exporter {
        enabled_in_broker = true
      }
    }
  }

  logging_info {
    broker_logs {
      cloudwatch_logs {
        enabled   = true
        log_group = aws_cloudwatch_log_group.kafka[0].name
      }
    }
  }

  lifecycle {
    prevent_destroy = true
    # Autoscaling changes it.
    ignore_changes = [broker_node_group_info[0].storage_info[0].ebs_storage_info[0].volume_size]
  }
}

resource "aws_appautoscaling_target" "kafka_storage" {
  count              = var.kafka == "provisioned" ? 1 : 0
  service_namespace  = "kafka"
  scalable_dimension = "kafka:broker-storage:VolumeSize"
  resource_id        = local.kafka_arn
  min_capacity       = 1
  max_capacity       = var.broker_volume_max_gib
}

resource "aws_appautoscaling_policy" "kafka_storage" {
  count              = var.kafka == "provisioned" ? 1 : 0
  name               = "${var.name}-kafka-storage"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.kafka_storage[0].service_namespace
  scalable_dimension = aws_appautoscaling_target.kafka_storage[0].scalable_dimension
  resource_id        = aws_appautoscaling_target.kafka_storage[0].resource_id

  target_tracking_scaling_policy_configuration {
    target_value     = 60
    disable_scale_in = true

    predefined_metric_specification {
      predefined_metric_type = "KafkaBrokerStorageUtilization"
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "kafka_disk" {
  count               = var.kafka == "provisioned" ? length(var.subnet_ids) : 0
  alarm_name          = "${var.name}-kafka-disk-${count.index + 1}"
  alarm_description   = "A broker with a full disk stops: raise broker_volume_max_gib, or let decisions and alerts expire."
  namespace           = "AWS/Kafka"
  metric_name         = "KafkaDataLogsDiskUsed"
  dimensions          = { "Cluster Name" = var.name, "Broker ID" = tostring(count.index + 1) }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 2
  threshold           = 85
  comparison_operator = "GreaterThanThreshold"
  alarm_actions       = [aws_sns_topic.flags.arn]
}
