locals {
  bootstrap_servers = (
    var.kafka == "serverless"
    ? aws_msk_serverless_cluster.this[0].bootstrap_brokers_sasl_iam
    : aws_msk_cluster.this[0].bootstrap_brokers_sasl_iam
  )
}

output "bootstrap_servers" {
  description = "Kafka's IAM listener."
  value       = local.bootstrap_servers
}

output "image_repository" {
  description = "Where the image is pushed."
  value       = aws_ecr_repository.this.repository_url
}

output "flags_topic_arn" {
  description = "SNS topic to subscribe people and programs to."
  value       = aws_sns_topic.flags.arn
}

output "helm_values" {
  description = "`terraform output -raw helm_values > aws.yaml`, then `helm install -f aws.yaml`; secrets of Valkey and API keys come from you."
  value = yamlencode({
    image = { repository = aws_ecr_repository.this.repository_url }
    kafka = {
      bootstrapServers = local.bootstrap_servers
      securityProtocol = "sasl_ssl"
      saslMechanism    = "AWS_MSK_IAM"
    }
    aws      = { region = var.region, serviceAccountName = var.service_account }
    settings = { consumer_group = var.consumer_group, decision_table = aws_dynamodb_table.decisions.name }
  })
}
