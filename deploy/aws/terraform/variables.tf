variable "name" {
  description = "Prefix of everything that is made here, lower case."
  type        = string
  default     = "fraud-flagger"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "The name has 2 to 31 lower-case letters, digits and hyphens."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the EKS cluster; Kafka goes there."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets in different availability zones, for Kafka and its event source mapping."
  type        = list(string)
  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "Kafka needs subnets in at least two availability zones."
  }
}

variable "eks_cluster_name" {
  description = "An EKS cluster that runs, with the Pod Identity agent add-on."
  type        = string
}

variable "eks_node_security_group_id" {
  description = "Security group of the cluster's nodes (or pods): it may reach Kafka."
  type        = string
}

variable "namespace" {
  description = "Kubernetes namespace of the Helm release."
  type        = string
  default     = "fraud"
}

variable "service_account" {
  description = "Service account of our pods, made here in AWS only; see docs/aws.md for the cluster's side."
  type        = string
  default     = "fraud-flagger"
}

variable "consumer_group" {
  description = "FLAGGER_CONSUMER_GROUP: prefix of consumer groups and transactional ids."
  type        = string
  default     = "fraud-flagger"
}

variable "kafka" {
  description = "serverless: no brokers to choose, for a start. provisioned: brokers of your size, for a known load."
  type        = string
  default     = "provisioned"
  validation {
    condition     = contains(["serverless", "provisioned"], var.kafka)
    error_message = "kafka is serverless or provisioned."
  }
}

variable "kafka_version" {
  description = "Version of provisioned brokers."
  type        = string
  default     = "3.9.x"
}

variable "broker_instance_type" {
  description = "Provisioned brokers; docs/aws.md has the arithmetic."
  type        = string
  default     = "kafka.m7g.large"
}

variable "broker_volume_gib" {
  description = "Disk of each provisioned broker: the log is what state is rebuilt from."
  type        = number
  default     = 500
}

variable "broker_volume_max_gib" {
  description = "Up to here the disks of provisioned brokers grow by themselves; they never shrink."
  type        = number
  default     = 4000
}

variable "stored_topic" {
  description = "What goes to DynamoDB: alerts (flagged ones only) or decisions (all)."
  type        = string
  default     = "alerts"
  validation {
    condition     = contains(["alerts", "decisions"], var.stored_topic)
    error_message = "stored_topic is alerts or decisions."
  }
}

variable "retention_days" {
  description = "How long DynamoDB keeps a decision."
  type        = number
  default     = 400
}

variable "functions_package" {
  description = "Archive by `python -m deploy.aws.package functions.zip`."
  type        = string
  default     = "functions.zip"
}

variable "kms_key_arn" {
  description = "Key for table, topics, queues and logs; null: keys that AWS owns. Its policy must allow these services."
  type        = string
  default     = null
}

variable "log_retention_days" {
  description = "How long the functions' and the brokers' logs are kept."
  type        = number
  default     = 90
}
